"""`ringhaul churn`: real processes, injected faults, and a check of everything."""
