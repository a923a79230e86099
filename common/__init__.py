"""What the scripts share: command line, seed, device and record of a run, files; also matrices on disk and pictures."""

from common.cli import (
    add_common_flags,
    boolean,
    bounded,
    choice,
    data_flags,
    format_table,
    new_parser,
    plain_text,
    positive_int,
    script,
    switch,
    whole_number,
)
from common.files import (
    DEFAULT_DATASET,
    DEFAULT_MODEL,
    EXP_DIR,
    ROOT,
    SPLITS,
    atomic_folder,
    atomic_path,
    check_new_folder,
    model_dir,
    read_lines,
    real_path,
    safe_name,
    shorten,
    tower_dir,
    write_array,
    write_json,
    write_text,
)
from common.run import Record, is_main_process, seed_everything, set_up, set_up_logging, show_progress
