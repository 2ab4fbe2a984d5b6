"""`ringhaul demo`: a ring of processes trains a small model while one dies and one joins."""
