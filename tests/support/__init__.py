"""What tests share: simulated TPMs, outside tools, peers."""
