"""`ks-classification pretrain`, from a checkout; see --help."""

import sys

from ks_classification.session import SESSION

from common.trainer import main

if __name__ == "__main__":
    sys.exit(main(SESSION, "pretrain"))
