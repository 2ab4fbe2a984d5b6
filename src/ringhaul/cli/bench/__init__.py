"""`ringhaul bench`: what the paths between a user's own machines give."""
