"""What needs GPUs: programs that check and print tables, and tests marked `gpu` (`make gpu-test`)."""
