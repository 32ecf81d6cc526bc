//! A machine as an image.

use ilot_image::{Image, Progress, Upper};
use ilot_runtime::Status;

use crate::Native;
use crate::error::{Error, Result};
use crate::ids::SIZE;

impl Native {
    /// Makes an image of what a machine has: its own layer on its image's. A running one is frozen for as long as its
    /// layer is read.
    ///
    /// # Errors
    /// When there is no such machine, it keeps nothing on the disk, cannot be frozen, or the image cannot be written.
    pub fn commit(
        &self,
        machine: &str,
        image_name: &str,
        comment: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Image> {
        let _lock = self.lock_machine(machine)?;
        let record = self.machine(machine)?;
        let folder = self.paths.machine(machine).join("upper");
        if !folder.is_dir() {
            return Err(Error::Invalid {
                message: format!("machine `{machine}` is amnesic: it keeps no files that an image could be made of"),
                help: Some("make the image from a machine that is not".to_owned()),
            });
        }
        let base = self.image_of(&record, progress)?;
        let run_dir = self.paths.machine_run(machine);
        let is_running = ilot_runtime::state(&run_dir)?.is_some_and(|state| state.status == Status::Running);
        let frozen = is_running.then(|| Frozen::new(&run_dir)).transpose()?;
        let who = format!("machine {machine}");
        let upper = Upper { folder: &folder, first_id: record.id_base, ids: SIZE, who: &who, comment };
        let image = self.images.commit_upper(&base, &upper, image_name, progress);
        if let Some(frozen) = frozen {
            frozen.resume()?;
        }
        Ok(image?)
    }
}

/// A machine that stands still; it goes on whatever happens.
struct Frozen<'a> {
    run_dir: Option<&'a std::path::Path>,
}

impl<'a> Frozen<'a> {
    fn new(run_dir: &'a std::path::Path) -> Result<Self> {
        ilot_runtime::pause(run_dir)?;
        Ok(Self { run_dir: Some(run_dir) })
    }

    fn resume(mut self) -> Result<()> {
        self.run_dir.take().map_or(Ok(()), |run_dir| Ok(ilot_runtime::resume(run_dir)?))
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        if let Some(run_dir) = self.run_dir
            && let Err(error) = ilot_runtime::resume(run_dir)
        {
            tracing::error!(run_dir = %run_dir.display(), %error, "a frozen machine does not go on");
        }
    }
}
