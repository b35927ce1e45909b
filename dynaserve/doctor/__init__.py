"""What can be wrong with a host and a pool: probes read facts, judges make findings of them."""
