"""The demonstration: trains a small family of replicas, then does what a user does with them."""
