"""What needs a container engine and the worker's image: `make container-test`."""
