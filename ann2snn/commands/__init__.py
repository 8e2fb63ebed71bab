"""What a command line can ask for, a module each: `ann2snn train`, and the scripts of a checkout."""
