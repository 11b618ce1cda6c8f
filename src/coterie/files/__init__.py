"""Files of users and of strangers: opened with care, read within limits, written whole or not at all."""
