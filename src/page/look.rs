//! How the pages of a host look and speak: its settings, read for one answer.

use std::sync::Arc;

use super::apps::{self, App, Button};
use crate::host::Host;

/// What a host has set for its pages.
pub struct Look {
    /// The host, in ASCII.
    pub host: String,
    /// What the pages call it.
    pub site: String,
    /// Style of its own: its accent, and then what the admin wrote.
    pub css: String,
    /// Whether it has a logo.
    pub logo: bool,
    /// Where its terms are.
    pub terms: Option<String>,
    /// Where its privacy statement is.
    pub privacy: Option<String>,
    /// The public base address, without a slash at its end.
    pub base: String,
    /// Whether accounts can be made in the browser.
    pub register: bool,
    /// The apps that it shows, in their order.
    pub apps: Vec<Arc<App>>,
}

impl Look {
    /// Takes it from all settings of the host; `embedded` are the apps that everybody has.
    pub fn of(values: &[(String, String)], host: &Host, embedded: &[Arc<App>]) -> Look {
        let mut look = Look {
            host: host.ascii().to_owned(),
            site: host.name().to_owned(),
            css: String::new(),
            logo: false,
            terms: None,
            privacy: None,
            base: format!("https://{}", host.ascii()),
            register: true,
            apps: embedded.to_vec(),
        };
        let (mut style, mut web_client, mut show, mut hide) = ("", None, None, Vec::new());
        for (name, value) in values {
            match name.as_str() {
                "site-name" => look.site.clone_from(value),
                "url" => look.base.clone_from(value),
                "accent" => look.css = format!(":root{{--accent:{value}}}"),
                "style" => style = value.as_str(),
                "logo" => look.logo = true,
                "terms-url" => look.terms = Some(value.clone()),
                "privacy-url" => look.privacy = Some(value.clone()),
                "apps" => {
                    // The host's own entries come first, and take the place of ours with the same id.
                    let own = apps::read(value).unwrap_or_default();
                    let mut own: Vec<Arc<App>> = own.into_iter().map(Arc::new).collect();
                    look.apps.retain(|app| own.iter().all(|own| own.id != app.id));
                    own.append(&mut look.apps);
                    look.apps = own;
                }
                "register" => look.register = value != "off",
                "web-client" => web_client = Some(value.clone()),
                "apps-show" => show = Some(words(value)),
                "apps-hide" => hide = words(value),
                _ => {}
            }
        }
        look.css.push_str(style);
        if let Some(url) = web_client {
            look.apps.push(Arc::new(web_app(&look.site, url)));
        }
        look.apps = choose(look.apps, show.as_deref(), &hide);
        look
    }
}

/// The apps to show, in the order of `show`. The host's own web client is shown unless it is hidden by its id. Settings that
/// would leave a guest without any app have no effect.
fn choose(apps: Vec<Arc<App>>, show: Option<&[String]>, hide: &[String]) -> Vec<Arc<App>> {
    let place = |app: &App| match show {
        Some(show) => {
            let listed = show.iter().position(|id| *id == app.id);
            listed.or((app.id == apps::WEB_CLIENT).then_some(show.len()))
        }
        None => Some(0),
    };
    let is_shown = |app: &&Arc<App>| place(app).is_some() && !hide.contains(&app.id);
    let mut shown: Vec<Arc<App>> = apps.iter().filter(is_shown).cloned().collect();
    shown.sort_by_key(|app| place(app));
    if shown.is_empty() { apps } else { shown }
}

/// The host's own web client as an app.
fn web_app(site: &str, url: String) -> App {
    App {
        id: apps::WEB_CLIENT.to_owned(),
        name: site.to_owned(),
        colour: "#455a64".to_owned(),
        platforms: vec!["web".to_owned()],
        preauth: false,
        link: url.clone(),
        buttons: vec![Button { text: site.to_owned(), url, magic_link_format: None }],
        login_link_format: None,
    }
}

fn words(text: &str) -> Vec<String> {
    text.split(',').map(|word| word.trim().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shown_and_hidden_apps_never_leave_a_guest_without_any() {
        let embedded: Vec<Arc<App>> = apps::embedded().into_iter().map(Arc::new).collect();
        let host = Host::parse("example.com").unwrap();
        let ids = |settings: &[(&str, &str)]| {
            let settings: Vec<_> =
                settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            let look = Look::of(&settings, &host, &embedded);
            look.apps.iter().map(|app| app.id.clone()).collect::<Vec<_>>()
        };
        let (show, hide, web) = ("apps-show", "apps-hide", ("web-client", "https://chat.example.com/"));
        assert_eq!(ids(&[(show, "monal,dino")]), ["monal", "dino"]);
        assert_eq!(ids(&[(show, "monal,dino"), web]), ["monal", "dino", "web-client"]);
        assert_eq!(ids(&[(show, "web-client,dino"), web]), ["web-client", "dino"]);
        assert_eq!(ids(&[(show, "monal,dino"), (hide, "dino,web-client"), web]), ["monal"]);
        assert_eq!(ids(&[(show, "dino"), (hide, "dino")]).len(), embedded.len());
        assert_eq!(ids(&[(show, "dino"), (hide, "dino"), web]), ["web-client"]);
        assert_eq!(ids(&[(show, "gone")]).len(), embedded.len());
    }
}
