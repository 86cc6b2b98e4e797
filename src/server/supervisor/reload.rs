//! SIGHUP: reads the configuration again, tells the shards their new limits and the log what has changed.

use std::sync::Arc;

use crate::{
    config::{Config, reload::Change},
    error::StartupError,
    logging,
    operator::control::{ControlSender, Dispatch, ShardRequest},
};
use tickcast_core::config::Limits;
use tickcast_proto::ids::ShardId;

/// Reads the configuration again, and says what is another in it than before.
pub type Reload = Box<dyn FnMut() -> Result<(Config, Vec<Change>), StartupError>>;

/// Holds what the shards work within, and what they are still to be told.
pub struct Reloader {
    /// `None`: there is no file to be read again.
    read_again: Option<Reload>,
    limits: Arc<Limits>,
    /// The log's filter.
    log: String,
    /// Shards that could not be asked, their rings being full: they are told as soon as they can be.
    untold: Vec<ShardId>,
    /// It was asked for, perhaps while there were no shards yet.
    is_asked: bool,
}

impl Reloader {
    /// For shards that work within this configuration's limits.
    pub fn new(read_again: Option<Reload>, config: &Config) -> Reloader {
        let (limits, log) = (Arc::new(config.limits.clone()), config.log.clone());
        Reloader { read_again, limits, log, untold: Vec::new(), is_asked: false }
    }

    /// Whether there is something to be read again.
    pub fn has_a_file(&self) -> bool {
        self.read_again.is_some()
    }

    /// To be done as soon as there are shards to be told.
    pub fn ask(&mut self) {
        self.is_asked = true;
    }

    /// Does what was asked for, and tells shards what they have not been told: to be called now and then.
    pub fn turn(&mut self, control: &mut ControlSender) {
        if std::mem::take(&mut self.is_asked) {
            self.reload(control);
        }
        for shard in std::mem::take(&mut self.untold) {
            self.tell(Some(shard), control);
        }
    }

    fn reload(&mut self, control: &mut ControlSender) {
        let Some(read_again) = &mut self.read_again else {
            return ::log::info!("SIGHUP: there is no file to be read again (--config)");
        };
        let (config, changes) = match read_again() {
            Ok(read) => read,
            // It goes on as it was.
            Err(error) => {
                return error.to_string().lines().for_each(|line| {
                    ::log::error!("SIGHUP: nothing is changed: {line}");
                });
            }
        };
        let limits = self.limits.with_reloadable_from(&config.limits);
        let tell = || {
            log_changes(&changes);
            for line in limits.changes_needing_restart(&config.limits) {
                ::log::warn!("SIGHUP: {line}");
            }
        };
        logging::set_filter(&config.log);
        if ::log::log_enabled!(::log::Level::Info) {
            tell();
        } else {
            // Whoever reads the log learns why it falls silent.
            logging::set_filter(&self.log);
            tell();
            logging::set_filter(&config.log);
        }
        self.log.clone_from(&config.log);
        if limits != *self.limits {
            self.limits = Arc::new(limits);
            self.untold.clear();
            self.tell(None, control);
        }
    }

    fn tell(&mut self, to: Option<ShardId>, control: &mut ControlSender) {
        let limits = self.limits.clone();
        let request = Box::new(move |_| ShardRequest::Reload(limits.clone()));
        self.untold.extend(control.send(Dispatch { to, request }));
    }
}

fn log_changes(changes: &[Change]) {
    changes.iter().for_each(|change| ::log::info!("SIGHUP: {change}"));
    if changes.is_empty() {
        ::log::info!("SIGHUP: nothing has changed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::settings::Settings,
        limits::CONTROL_REQUESTS_PER_SHARD,
        operator::control::{ReplySender, control_channels},
    };
    use tickcast_core::mesh::ring::Doorbell;

    #[test]
    fn a_shard_whose_ring_is_full_is_told_later_and_of_the_newest() {
        let bell = Arc::new(Doorbell::new(|| {}));
        let (mut control, mut receivers) = control_channels(&[bell]);
        let close = || ShardRequest::Close(1, ReplySender::always_open(|_| ()));
        for _ in 0..CONTROL_REQUESTS_PER_SHARD {
            control.send(Dispatch { to: None, request: Box::new(move |_| close()) });
        }
        let settings = Settings::read(&["tickcast", "serve"].map(Into::into)).unwrap();
        let config = Config::new(&settings, &[0]).unwrap();
        let mut other = config.clone();
        let read_again = move || {
            other.limits.publish_rate += 1;
            Ok((other.clone(), Vec::new()))
        };
        let mut reloader = Reloader::new(Some(Box::new(read_again)), &config);
        for _ in 0..2 {
            reloader.ask();
            reloader.turn(&mut control);
        }
        let mut told = Vec::new();
        let mut take_all = |told: &mut Vec<u32>| {
            while let Some(request) = receivers[0].try_recv() {
                if let ShardRequest::Reload(limits) = request {
                    told.push(limits.publish_rate);
                }
            }
        };
        take_all(&mut told);
        assert!(told.is_empty());
        reloader.turn(&mut control);
        reloader.turn(&mut control);
        take_all(&mut told);
        assert_eq!(told, [2]);
    }
}
