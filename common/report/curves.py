"""placeholder until the SVG version arrives"""


def draw_curves(found, path, axes):
    raise AssertionError
