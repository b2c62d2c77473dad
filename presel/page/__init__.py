"""Parts of the HTML pages that `presel` writes: self-contained files, for light and dark screens.

- `render` fills a template that extends `page/base.html`, the skeleton with all styles. Text is escaped,
  control characters too.
- `pictures` makes thumbnails as `data:` URIs: single ones, named rows of them, and sheets of thousands.
- `page/parts.html` has macros for tables, for rows of pictures, and for groups of them side by side.

Two pages of the same content are equal byte by byte, and none makes a request.
"""

from presel.page.pictures import Picture, PictureRow, Sheets, picture, sheets
from presel.page.rendering import render

__all__ = ["Picture", "PictureRow", "Sheets", "picture", "render", "sheets"]
