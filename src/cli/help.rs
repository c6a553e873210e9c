//! The texts of `--help`, each by the name of its command: each fits a screen.

#![allow(missing_docs, reason = "the texts speak for themselves")]

use crate::settings;

pub const OVERVIEW: &str = "\
invited - hands out invites to an XMPP server. Usage: invited COMMAND [ARGUMENTS]

  invite HOST              make an invite and print its link
  invites HOST             print the invites of a host
  show HOST TOKEN          print all that is known of an invite
  revoke HOST TOKEN        take an invite back
  prune [HOST]             remove what has expired
  create HOST [NAME]       make an API key and print it, once
  list HOST                print the API keys of a host
  delete HOST ID           delete an API key
  serve                    serve the API and the invite pages
  setup WHAT HOST          print what to paste into nginx, systemd, Prosody and so on
  doctor HOST              look for what is wrong, and say what helps
  backup FILE              copy the database while all runs
  restore FILE             put a copy in its place
  try [HOST]               a throw-away server with a key, to look around
  import FILE              bring in keys and invites of Prosody's own modules
  set HOST NAME VALUE      set a setting of a host
  get HOST [NAME]          print one setting, or all that are set
  unset HOST NAME          take a setting back to its default

Options: --db FILE (else $INVITED_DB, else /var/lib/invited/invited.sqlite), --help, --version.
`invited help COMMAND` (or COMMAND --help) says more. Exit codes: 0 done, 1 failed, 2 wrong usage
(those of `serve` are in the README). Results go to stdout, all else to stderr.
";

pub const CREATE: &str = "\
Usage: invited create HOST [NAME] [--allow KINDS] [--expires DURATION] [--per-day N] [--db FILE]

Makes an API key for the XMPP host HOST and prints it as ID/SECRET. This is the only time that
the secret is shown: just a digest of it is kept. NAME is for you, to know the key by.
A missing database is made (mode 0660 less the umask), a missing folder is not.

  --allow KINDS       what it may make, separated by commas: account, contact, reset,
                      role:NAME, group:NAME, uses:N (up to N uses); without it: account
  --expires DURATION  how long the key is good for (30min, 12h, 7d, 2w, 1y; without it: for ever)
  --per-day N         invites that it may make in any 24 hours (without it: no limit)

  invited create example.com 'front desk' --per-day 20
";

pub const LIST: &str = "\
Usage: invited list HOST [--json] [--db FILE]

Prints the API keys of HOST, oldest first, one a line: ID, a tab, NAME (<unknown> without one).
With --json, all that is known of them: limits, number of invites, last use.
";

pub const DELETE: &str = "\
Usage: invited delete HOST ID [--revoke-unused] [--db FILE]

Deletes the API key ID of HOST, at once on a running server too. Invites that were made with it stay
valid; --revoke-unused revokes the unused ones. If it is interrupted, run it again to continue.
Prints nothing. Exits with 1 if HOST has no key ID.
";

pub const INVITE: &str = "\
Usage: invited invite HOST [--user NAME | --contact USER [--register] | --reset USER]
                      [--ttl DURATION] [--uses N] [--role R]… [--group G]… [--note TEXT]
                      [--new-host] [--qr | --json] [--db FILE]

Makes an invite and prints its link. Without a kind: an account with a name of the guest's choice.

  --user NAME         an account with this name and no other
  --contact USER      become a contact of USER; with --register, make an account here first
  --reset USER        set a new password for USER
  --ttl DURATION      how long it is good for: 30min, 12h, 7d, 2w, 1y (the setting ttl, else 7d;
                      resets 1d)
  --uses N            good for N registrations
  --role R, --group G what the new account gets, several times if need be (Prosody)
  --note TEXT         for you, shown in lists
  --new-host          HOST may be one that the file does not know yet
  --qr                the link as a QR code too
  --json              all of it as a JSON object
";

pub const INVITES: &str = "\
Usage: invited invites HOST [--all] [--json] [--db FILE]

Prints the pending invites of HOST, oldest first, those made inside XMPP clients too. One a line,
with tabs between: TOKEN, state, when it ends or ended and what guests did with the page, what for,
made by, uses left, note.
With --all, the used, revoked and expired ones as well; with --json, an array of objects.
";

pub const SHOW: &str = "\
Usage: invited show HOST TOKEN [--json] [--db FILE]

Prints all that is known of an invite: what it is for, its addresses, who made it, who used it.
Exit code 1 if there is no such invite.
";

pub const REVOKE: &str = "\
Usage: invited revoke HOST TOKEN [--db FILE]

Takes a pending invite back, at once and on the XMPP server too. Prints nothing; exit code 1 if
there is no such invite, or if it was used, revoked or expired already.
";

pub const PRUNE: &str = "\
Usage: invited prune [HOST] [--db FILE]

Removes expired invites from the XMPP server's table, and from our history what ended more than a
year ago; of all hosts, or of one. A running server does the same once an hour.
";

pub const IMPORT: &str = "\
Usage: invited import FILE [--db FILE]

Imports the API keys and the pending invites that Prosody's own modules have made, so that bookmarks
and links that are out already go on working. FILE is Prosody's folder of a host or a file in it,
such as /var/lib/prosody/example%2ecom/invite_api_keys.dat, or its SQLite database.
Everything is checked before anything is written. If the import is interrupted, run it again to
continue. Prints what was imported: `2 keys, 5 invites, 0 skipped`. What is here already, or
has expired, is skipped.
";

pub const SERVE: &str = "\
Usage: invited serve [--listen ADDR:PORT | --listen unix:PATH]… [--socket-mode MODE] [--inetd]
                     [--idle-exit DURATION] [--trust-proxy] [--admin-listen ADDR:PORT | unix:PATH]…
                     [--log-level LEVEL] [--db FILE]

Serves the API and the invite pages until SIGTERM or SIGINT, in the foreground. When the sockets are
open, `listening on http://ADDR:PORT` is printed on stderr for each, and then a line a request.

  --listen            where, several times if need be: 127.0.0.1:8642 (if nothing else is said),
                      [::1]:8642, unix:PATH; port 0 takes a free one. Sockets of a supervisor
                      (LISTEN_FDS) are served without this
  --socket-mode MODE  access to Unix sockets, in octal (660)
  --inetd             serve what inetd has put on stdin: a connection (nowait) or a socket (wait)
  --idle-exit DURATION  end after so long without a connection, for sockets of a supervisor
  --trust-proxy       the last address of the proxy's X-Forwarded-For (or Forwarded) is the
                      client's; who tries many unknown tokens or bad keys has to wait
  --admin-listen      where, in the same way: answer /healthz and /metrics there alone
  --log-level LEVEL   error: failures; warning: also what was refused; info: a line a request

It speaks plain HTTP: put a proxy with TLS before it, as the README shows.
";

pub const SETUP: &str = "\
Usage: invited setup WHAT HOST [--listen ADDR:PORT] [--db FILE]

Prints what to paste into another program's configuration, filled in with your paths, host, user
and addresses. Its comments say in which file it goes and what activates it, so that it can be
redirected into that file: `invited setup nginx example.com > /etc/nginx/snippets/invited.conf`.
It changes nothing by itself. WHAT is one of:

  prosody, ejabberd          the XMPP server that reads the invites
  systemd, openrc, runit     runs `invited serve`, and starts it again whenever it ends
  inetd                      starts it for each request (openbsd-inetd or xinetd)
  nginx, caddy, apache       the web server before it; keeps keys and tokens out of its logs
  cron                       prunes, makes a copy each night, and reports what is wrong
  fail2ban                   bans who guesses keys and tokens

The user and the group are those that own the database, else its folder; the addresses are those
of the settings url and server.

  --listen ADDR:PORT  where `serve` listens (127.0.0.1:8642 without it); unix:PATH is possible too
";

pub const DOCTOR: &str = "\
Usage: invited doctor HOST [--json] [--db FILE]

Looks for what is wrong with HOST and says what helps, one line a check: ok, warning or error, the
word of the check, what was found, and the way out in parentheses. The README lists the words.
Exit code 1 if there is an error; a warning alone is 0. With --json, an array of objects with
`check`, `level`, `text` and, where not ok, `help`.

It looks at the file (rights, room, damage, version, locks), at the settings and the clock, asks the
XMPP server what it offers and whether it reads this file, and the public address whether it leads
here. For that it makes an invite and takes it back without a trace. All in half a minute at most.

Run it as the user that `invited serve` runs as:

  runuser -u prosody -- invited doctor example.com
";

pub const BACKUP: &str = "\
Usage: invited backup FILE [--db FILE]

Copies the database as it is at this moment to the new file FILE, while invited and the XMPP server
go on writing. FILE has mode 0600, and is there only when it is whole and on the disk; one that is
there already is not touched. Prints nothing. Every night, as a line of a crontab:

  0 4 * * *  /usr/local/bin/invited backup /var/backups/invited/$(date +\\%F).sqlite

`invited restore FILE` puts it back.
";

pub const RESTORE: &str = "\
Usage: invited restore FILE [--db FILE]

Puts a copy that `invited backup` has made in the place of the database. Stop invited and the XMPP
server first: while anybody has the database open, this is refused. FILE is checked before, and
nothing is changed if it is damaged, or written by a newer invited. It stays where it is.

The database keeps its owner and mode. The old one is kept beside it as
invited.sqlite.before-restore (-2, -3 and so on where there is one), and its name is printed.
";

pub const TRY: &str = "\
Usage: invited try [HOST]

Makes a throw-away database with a key for HOST (default example.com), serves it on a free port of
this machine, and prints the lines to try it with. Ctrl-C, or the end of the terminal, ends it and
leaves nothing behind.
";

pub const SET: &str = "\
Usage: invited set HOST NAME VALUE [--new-host] [--db FILE]

Sets a setting of HOST. A running server follows at once. With --new-host, HOST may be one that the
file does not know yet.
";

pub const GET: &str = "\
Usage: invited get HOST [NAME] [--db FILE]

Prints the value of a setting of HOST; exit code 1 if it is not set.
Without NAME, prints all that are set, one a line: NAME, a tab, VALUE.
";

pub const UNSET: &str = "\
Usage: invited unset HOST NAME [--db FILE]

Takes a setting of HOST back to its default. A running server follows at once.
";

/// The list of settings, for the commands that take one.
pub fn settings() -> String {
    let mut text = "\nSettings:\n".to_owned();
    for setting in settings::SETTINGS {
        text.push_str(&format!("  {:<12} {}\n", setting.name, setting.help));
    }
    text
}
