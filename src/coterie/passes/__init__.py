"""The forward pass: which one is going on, and which forwards of modules it runs through."""
