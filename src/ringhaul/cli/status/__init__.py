"""`ringhaul status`: how a run is doing, as its coordinator tells it."""
