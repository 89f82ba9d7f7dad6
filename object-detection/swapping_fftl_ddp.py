import sys

from ks_detection.session import SESSION

from common.commands import main

sys.exit(main(SESSION, "swap", ["--order", "fftl", *sys.argv[1:]]))
