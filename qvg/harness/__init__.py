"""`qvg study`: plans of videos, each made once on any number of machines, and a page to decide from."""
