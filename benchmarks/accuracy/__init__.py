"""Whether `coterie plan` is right: its ranges beside what is measured, and beside routing that was recorded."""
