"""fedzo: federated zeroth-order fine-tuning with replicas that agree to the bit."""
