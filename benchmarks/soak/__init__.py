"""Many requests with random cuts, a third of them cancelled: whatever was held must come back."""
