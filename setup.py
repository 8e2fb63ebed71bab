"""What pyproject.toml cannot say: the flagfiles of config/ ship as ann2snn/flagfiles, and stay where they are here."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["ann2snn", "ann2snn.*"]), "ann2snn.flagfiles"],
    package_dir={"ann2snn.flagfiles": "config"},
    package_data={
        "ann2snn": ["py.typed", "pretrained/*/*"],
        "ann2snn.data": ["fashion_mnist_10k/*"],
        "ann2snn.flagfiles": ["*/*.txt"],
        "ann2snn.report": ["page.css", "page.js"],
    },
    include_package_data=False,  # these files, whatever else a checkout holds
)
