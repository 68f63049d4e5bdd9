"""torchrun as a program that ends with its starter: a worker that is killed leaves no arm behind on its GPUs."""

import sys

from worker.lifetime import die_with_parent

if __name__ == "__main__":
    die_with_parent()
    # Late: importing torch takes seconds, in which the starter may already be gone.
    from torch.distributed.run import main

    sys.exit(main())
