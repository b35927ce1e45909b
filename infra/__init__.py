"""What stands around the services: NATS, locks, and later dashboards and deployment."""
