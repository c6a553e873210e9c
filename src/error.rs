//! The one error type: what went wrong with which object, and the way out.
//!
//! A message is lower case without a full stop, names its object, and says what to do in parentheses where that helps.
//! Here a kind becomes an exit code, and in `routes` an HTTP status.
//! No message ever holds the secret of a key or a password.

use std::fmt;

/// What sort of failure an [`Error`] is, for the two places that translate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The command line or a value on it is wrong.
    Usage,
    /// The named object does not exist.
    NotFound,
    /// The named object exists, but what was asked for can't be done with it.
    Refused,
    /// Someone else holds the database, or there is no room: worth another try later.
    Unavailable,
    /// A file or socket can't be made.
    CannotCreate,
    /// This user may not do it.
    Permission,
    /// Something that has been set up does not fit.
    Config,
    /// Reading or writing failed, or what was read is damaged.
    Io,
    /// Everything else; over HTTP the message goes to the log alone.
    Internal,
}

/// A failure with its message for people.
#[derive(Clone, Debug)]
pub struct Error {
    /// The sort of failure.
    pub kind: Kind,
    message: String,
}

/// The result of everything here that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// An error of this kind with this message.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into() }
    }

    /// The command line or a value on it is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Error::new(Kind::Usage, message)
    }

    /// The named object does not exist.
    pub fn not_found(message: impl Into<String>) -> Self {
        Error::new(Kind::NotFound, message)
    }

    /// What was asked for can't be done with the named object.
    pub fn refused(message: impl Into<String>) -> Self {
        Error::new(Kind::Refused, message)
    }

    /// Something that has been set up does not fit.
    pub fn config(message: impl Into<String>) -> Self {
        Error::new(Kind::Config, message)
    }

    /// Worth another try later.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Error::new(Kind::Unavailable, message)
    }

    /// A failure that no other kind fits.
    pub fn internal(message: impl Into<String>) -> Self {
        Error::new(Kind::Internal, message)
    }

    /// The exit code: 2 for wrong usage and 1 for all else; for a supervisor, that of sysexits.h.
    pub fn exit_code(&self, for_supervisor: bool) -> u8 {
        match self.kind {
            Kind::Usage if for_supervisor => 64,
            Kind::Usage => 2,
            _ if !for_supervisor => 1,
            Kind::NotFound => 66,
            Kind::CannotCreate => 73,
            Kind::Io => 74,
            Kind::Unavailable => 75,
            Kind::Permission => 77,
            Kind::Config => 78,
            Kind::Refused | Kind::Internal => 1,
        }
    }

    /// The same failure, with what was being done in front of it.
    pub fn context(self, doing: impl fmt::Display) -> Self {
        Error { kind: self.kind, message: format!("{doing}: {}", self.message) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Error {}
