"""What compilers make of our programs for devices that need not be here; nothing is run, and nothing is timed."""
