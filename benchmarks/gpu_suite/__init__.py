"""Everything that needs one GPU host, on engines that are started once."""
