"""`python -m limbeck` is the command `limbeck`."""

import sys

from limbeck.cli.main import main

if __name__ == "__main__":
    sys.argv[0] = "limbeck"  # the name under which a run records its command
    main()
