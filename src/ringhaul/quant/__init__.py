"""Codecs: how values are packed on the wire, and what that does to them.

**In the ring** (`SegmentCoder`). The first rank of a chunk encodes its own values. Each next one
decodes, adds its own values in float32 (float64 for float64 arrays), encodes again. The owner
of the chunk encodes the result *once*; that is passed on byte by byte, and everybody, the owner
too, takes the decoded value of those bytes. Decoding uses element-wise IEEE operations only, each
rounded by itself, so all CPUs make the same bits of the same bytes (P3). Encoding happens at
one peer only, so it need not be the same everywhere (it is, but for the payload of NaNs).

**The error** of one encoding is `Codec.error_bound(low, high)`, of the block of a value:

==========  ======================================  =======================  ==============
codec       largest error                           NaN, infinity            bytes / float32
==========  ======================================  =======================  ==============
raw         none                                    carried                  4
fp16        2**-11 of the value (2**-25 at least)   carried; >= 65520 no     2
bf16        2**-8 of the value                      carried; >= 3.396e38 no  2
uint8       (high - low) / 510                      refused                  1.008
uint8-zp    (high - low) / 508, or 2**-22 of it     refused                  1.008
uint8-fine  (high - low) / 510, mostly / 790        refused                  1.045
uint4       (high - low) / 30                       refused                  0.516
uint4-fine  (high - low) / 30, mostly / 46          refused                  0.545
-sr         (high - low) / 254 or / 14, no bias     refused
==========  ======================================  =======================  ==============

("of it": of the largest value.) Where a block has values on both sides of zero, or at it, zero
comes back as exactly zero. "no" means `UnfitValueError`, a `ValueError` that names the element,
before its segment is sent: a finite value is never turned into infinity, nor a NaN into a number.

An all-reduce over n peers encodes n times: partial sums of 1, 2, ..., n - 1 contributions, and
the result. So it is off by at most the sum of n bounds, the k-th of the range of a sum of k
contributions. For independent contributions of one range R that range grows as sqrt(k): at most
R * sqrt(n) / 510 * 2 / 3 * n, and typically, as errors are independent too, about sqrt(n / 2)
times the error of a single encoding, both relative to a result that grows as sqrt(n). For "avg"
all is divided by n. For "min" and "max" the bounds add up in the same way. `ErrorFeedback` makes
the mean over many calls exact.

Blocks: a shorter one has a smaller range, but more scales, and costs NumPy some 250 ns more each.
Of normal data, 3 peers, an all-reduce with blocks of 1024 / 512 / 256 values is off by 0.0104 /
0.0098 / 0.0091 (rms) and 0.037 / 0.034 / 0.033 (most), for 0.8 / 1.6 / 3.1 % more bytes. The most
that one range per chunk, rounded down, is off is 0.096: the rest is that all n encodings of a value
may be off by half a step the same way.

"-fine": the codes of a block of 2048 values cover a window that all but some 2 % of them lie in,
and a byte for each of the others says where it is and on which side (`fine.py`). Of the same data
such an all-reduce is off by 0.0072 (rms) and 0.0215 (most): two thirds for 3.7 % more bytes; half
of it where tails are heavy. NumPy alone takes nearly three times as long to encode, the compiled
kernels twice as long.

Kernels come compiled with the extra "fast" (`ringhaul.compiled`), with the same bits.

Imports nothing above layer 1. Not thread safe: a `SegmentCoder` is for one thread.
"""

from ringhaul.quant.base import BATCH_ELEMENTS, Codec, Coder, UnfitValueError
from ringhaul.quant.compression import Compressor, ZstdCodec
from ringhaul.quant.error_meter import ErrorMeter
from ringhaul.quant.feedback import ErrorFeedback, FeedbackRound, Reservation, Residual
from ringhaul.quant.registry import RAW, check_codec, codec_names, find_codec, register_codec
from ringhaul.quant.segment import SegmentCoder

__all__ = [
    "BATCH_ELEMENTS",
    "RAW",
    "Codec",
    "Coder",
    "Compressor",
    "ErrorFeedback",
    "ErrorMeter",
    "FeedbackRound",
    "Reservation",
    "Residual",
    "SegmentCoder",
    "UnfitValueError",
    "ZstdCodec",
    "check_codec",
    "codec_names",
    "find_codec",
    "register_codec",
]
