"""Files that appear whole or not at all. Every file that the pack writes is written through these."""

from __future__ import annotations

from ..kernels.whole_file import NewFile as NewFile
from ..kernels.whole_file import force_all_to_disk as force_all_to_disk
from ..kernels.whole_file import force_to_disk as force_to_disk
from ..kernels.whole_file import try_folder as try_folder
from ..kernels.whole_file import written_new as written_new
from ..kernels.whole_file import written_whole as written_whole
