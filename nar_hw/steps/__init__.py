"""What each verb of the command line does, from Python: one file per verb."""
