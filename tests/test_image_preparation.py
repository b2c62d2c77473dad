"""Images as LLaVA takes them: padded to a square."""

import numpy as np
import pytest
from PIL import Image

from presel.data.decoding import MAX_PIXELS
from presel.models.image_preparation import padded_to_square

GRAY = (122, 116, 104)


def test_a_picture_stands_in_the_middle_of_the_square() -> None:
    square = np.asarray(padded_to_square(Image.new("RGB", (2, 4), "red"), GRAY))
    assert square.shape == (4, 4, 3)
    assert (square[:, 1:3] == (255, 0, 0)).all()
    assert (square[:, [0, 3]] == GRAY).all()


@pytest.mark.parametrize("size", [(60, 60_000), (1_000_000, 1)])
def test_the_square_of_a_long_picture_fits_into_memory(size: tuple[int, int]) -> None:
    square = padded_to_square(Image.new("RGB", size, "red"), GRAY)
    assert square.width == square.height
    assert square.width**2 <= MAX_PIXELS
    middle = (square.width - 1) // 2
    assert square.getpixel((middle, middle)) == (255, 0, 0)
    assert square.getpixel((middle, 0) if size[1] == 1 else (0, middle)) == GRAY
