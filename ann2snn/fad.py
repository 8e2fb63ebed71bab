"""python -m ann2snn.fad: trains an encoder for the Frechet autoencoder distance; see `ann2snn.stages.fad_train`."""

import sys

from .stages.fad_train import main

if __name__ == "__main__":
    sys.exit(main())
