"""``dynaserve explain``: what was planned for one request, what happened, and why it was late."""
