"""Page sets from data sets: what scripts/build_pages.py does. No node imports it."""
