"""What requests may say and what answers say. Whatever is not here is refused by its name."""
