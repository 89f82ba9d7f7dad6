import sys

from ks_detection.session import SESSION

from common.trainer import main

sys.exit(main(SESSION, "swap", ["--order", "fltf", *sys.argv[1:]]))
