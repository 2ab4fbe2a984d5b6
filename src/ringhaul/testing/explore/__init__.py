"""Exhaustive exploration of small worlds: every order of deliveries, at most one fault.

Both real machines run; the network, the data links and the callers are models with as few
facts as they need, so that equal states are recognised and visited once.

Time is abstract. Each machine's clock stands still while anything else can happen; when
nothing can, all clocks go on by one second (`Passes`), heartbeats are exchanged at once, and
what is due happens. So timers never race with messages that are under way; everything else
races with everything. Instants are compared relative to their machine's clock.
"""
