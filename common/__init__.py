"""What the scripts share: command line, seed, device and record of a run, files; also matrices on disk and pictures."""

from common.cli import add_common_flags, bounded, data_flags, format_table, positive_int, script, switch, whole_number
from common.files import ROOT, SPLITS, atomic_folder, model_dir, tower_dir, write_array, write_json, write_text
from common.run import Record, is_main_process, set_up, set_up_logging, show_progress
