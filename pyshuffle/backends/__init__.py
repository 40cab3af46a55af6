"""What a network can be run as: each an interpretation of the operations in ops.py."""
