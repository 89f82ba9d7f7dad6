"""`ks-segmentation swap`, from a checkout; see --help."""

import sys

from ks_segmentation.session import SESSION

from common.trainer import main

if __name__ == "__main__":
    sys.exit(main(SESSION, "swap"))
