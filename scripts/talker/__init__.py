"""How the talker of the bundled omni model is made; the command is scripts/train_talker.py."""
