"""What the controller does by itself: each takes no arguments, reads all, and converges."""
