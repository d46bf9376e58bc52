//! Which hub, with whose token, and where its files are cached: the variables that the hub's own
//! tools read. The client reads none of them itself.

use std::ffi::OsString;
use std::fmt;
use std::io;
use std::path::PathBuf;

use super::HubError;
use crate::text_file;

const DEFAULT_ENDPOINT: &str = "https://huggingface.co";

/// Longest token that is taken, in bytes: real ones have 37.
const MAX_TOKEN_BYTES: u64 = 1024;

/// What the environment says about the hub.
#[derive(Debug)]
pub(in crate::model::source) struct HubSettings {
    /// Folder with `models--org--name` folders in it.
    pub(in crate::model::source) cache: PathBuf,
    /// Address without a slash at its end. It may hold a password: shown is
    /// [`HubSettings::shown_endpoint`].
    pub(super) endpoint: String,
    /// Or what is wrong with it, which concerns only those who ask the hub.
    token: Result<Option<HubToken>, String>,
    pub(super) offline: bool,
}

/// A secret that is never shown.
pub(super) struct HubToken(String);

impl HubToken {
    /// Blank text is no token.
    fn parse(text: &str, from: &str) -> Result<Option<Self>, String> {
        let token = text.trim();
        if token.is_empty() {
            return Ok(None);
        }
        let is_token =
            token.len() as u64 <= MAX_TOKEN_BYTES && token.chars().all(|c| c.is_ascii_graphic());
        match is_token {
            true => Ok(Some(Self(token.to_owned()))),
            false => Err(format!(
                "{from} holds no token: wanted one word of at most {MAX_TOKEN_BYTES} letters"
            )),
        }
    }

    /// As a header's value.
    pub(super) fn bearer(&self) -> String {
        format!("Bearer {}", self.0)
    }
}

impl fmt::Debug for HubToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HubToken(…)")
    }
}

impl HubSettings {
    /// Reads HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE, and the token that a
    /// login left in HF_HOME.
    pub(in crate::model::source) fn read(
        offline: bool,
        variable: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, HubError> {
        let variable = |name: &str| variable(name).filter(|value| !value.is_empty());
        let path = |name: &str| variable(name).map(PathBuf::from);
        let text = |name: &str| match variable(name).map(OsString::into_string) {
            None => Ok(None),
            Some(Ok(text)) => Ok(Some(text)),
            Some(Err(_)) => Err(format!("{name} is no UTF-8")),
        };
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| path("HOME").map(|home| home.join(".cache").join("huggingface")));
        let cache = path("HF_HUB_CACHE").or_else(|| Some(home.as_ref()?.join("hub")));
        let cache = cache.ok_or_else(|| {
            HubError::Setting(
                "found no place for the hub's cache, as neither HOME nor HF_HOME is set: set \
                 HF_HUB_CACHE to a folder"
                    .to_owned(),
            )
        })?;
        let endpoint = text("HF_ENDPOINT").map_err(HubError::Setting)?;
        let endpoint = endpoint.unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned());
        let endpoint = endpoint.trim_end_matches('/').to_owned();
        if !(endpoint.starts_with("https://") || endpoint.starts_with("http://")) {
            return Err(HubError::Setting(format!(
                "HF_ENDPOINT is {:?}, wanted an address such as {DEFAULT_ENDPOINT}",
                without_user(&endpoint)
            )));
        }
        let is_set = |value: String| {
            ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
        };
        let token = match text("HF_TOKEN") {
            Ok(Some(token)) => HubToken::parse(&token, "HF_TOKEN"),
            Ok(None) => home.map_or(Ok(None), |home| token_in_file(home.join("token"))),
            Err(why) => Err(why),
        };
        let is_set_offline = text("HF_HUB_OFFLINE").map_err(HubError::Setting)?;
        Ok(Self {
            cache,
            endpoint,
            token,
            offline: offline || is_set_offline.is_some_and(is_set),
        })
    }

    /// The hub's address for people, without the user and password that it may hold.
    pub(super) fn shown_endpoint(&self) -> String {
        without_user(&self.endpoint)
    }

    /// The token, if there is one.
    pub(super) fn token(&self) -> Result<Option<&HubToken>, HubError> {
        match &self.token {
            Ok(token) => Ok(token.as_ref()),
            Err(why) => Err(HubError::Setting(why.clone())),
        }
    }
}

/// An address without what stands before an `@`, wherever that is: in a malformed one, too.
fn without_user(address: &str) -> String {
    let (scheme, rest) = match address.split_once("://") {
        Some((scheme, rest)) => (format!("{scheme}://"), rest),
        None => (String::new(), address),
    };
    match rest.rsplit_once('@') {
        Some((_, rest)) => format!("{scheme}…@{rest}"),
        None => address.to_owned(),
    }
}

fn token_in_file(path: PathBuf) -> Result<Option<HubToken>, String> {
    match text_file::read(&path, MAX_TOKEN_BYTES) {
        Ok(text) => HubToken::parse(&text, &path.display().to_string()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(format!(
            "cannot read the hub's token in {}: {error}: set HF_TOKEN instead",
            path.display()
        )),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn read(set: &[(&str, &str)]) -> Result<HubSettings, HubError> {
        HubSettings::read(false, |name| {
            let (_, value) = set.iter().find(|(key, _)| *key == name)?;
            Some(OsString::from(value))
        })
    }

    #[test]
    fn the_cache_follows_the_variables_in_order() {
        let all = [
            ("HOME", "/h"),
            ("XDG_CACHE_HOME", "/x"),
            ("HF_HOME", "/hf"),
            ("HF_HUB_CACHE", "/c"),
        ];
        let wanted = [
            "/h/.cache/huggingface/hub",
            "/x/huggingface/hub",
            "/hf/hub",
            "/c",
        ];
        for (set, wanted) in wanted.iter().enumerate() {
            assert_eq!(read(&all[..=set]).unwrap().cache, Path::new(wanted));
        }
        let none = read(&[]).unwrap_err().to_string();
        assert!(none.contains("set HF_HUB_CACHE"), "{none}");
    }

    #[test]
    fn the_token_comes_from_the_variable_or_from_the_file_and_is_never_shown() {
        let folder = tempfile::tempdir().unwrap();
        let home = folder.path().to_str().unwrap();
        let bearer = |set: &[(&str, &str)]| {
            let settings = read(set).unwrap();
            settings.token().unwrap().map(HubToken::bearer)
        };
        assert_eq!(bearer(&[("HF_HOME", home)]), None);
        std::fs::write(folder.path().join("token"), "hf_file\n").unwrap();
        assert_eq!(bearer(&[("HF_HOME", home)]).unwrap(), "Bearer hf_file");
        let both = [("HF_HOME", home), ("HF_TOKEN", " hf_set ")];
        assert_eq!(bearer(&both).unwrap(), "Bearer hf_set");
        let shown = format!("{:?}", read(&both).unwrap());
        assert!(!shown.contains("hf_set"), "{shown}");

        let broken = read(&[("HF_HOME", home), ("HF_TOKEN", "two words")]);
        // Who does not ask the hub never hears of it.
        let broken = broken.unwrap().token().unwrap_err().to_string();
        assert!(
            broken.contains("HF_TOKEN") && !broken.contains("two words"),
            "{broken}"
        );
        std::fs::write(folder.path().join("token"), vec![b'a'; 2000]).unwrap();
        let long = read(&[("HF_HOME", home)]).unwrap();
        let long = long.token().unwrap_err().to_string();
        assert!(long.contains("set HF_TOKEN"), "{long}");
    }

    #[test]
    fn the_network_is_off_where_one_of_them_says_so() {
        let offline = |value: &str| {
            let set = [("HOME", "/h"), ("HF_HUB_OFFLINE", value)];
            read(&set).unwrap().offline
        };
        assert!(offline("1") && offline("true") && offline("Yes"));
        assert!(!offline("0") && !offline("") && !offline("no"));
        let flag = HubSettings::read(true, |name| (name == "HOME").then(|| "/h".into()));
        assert!(flag.unwrap().offline);
    }

    #[test]
    fn an_endpoint_is_an_address() {
        let endpoint = |value: &str| {
            Ok::<_, HubError>(read(&[("HOME", "/h"), ("HF_ENDPOINT", value)])?.endpoint)
        };
        assert_eq!(endpoint("").unwrap(), DEFAULT_ENDPOINT);
        assert_eq!(
            endpoint("http://127.0.0.1:1/").unwrap(),
            "http://127.0.0.1:1"
        );
        let bad = endpoint("ftp://a").unwrap_err().to_string();
        assert!(bad.contains("ftp://a"), "{bad}");
        let bad = endpoint("ftp://user:secret@a").unwrap_err().to_string();
        assert!(
            bad.contains("ftp://…@a") && !bad.contains("secret"),
            "{bad}"
        );
    }

    #[test]
    fn a_password_in_the_endpoint_is_used_and_never_shown() {
        for (address, shown) in [
            ("https://mirror/hub", "https://mirror/hub"),
            ("https://user:secret@mirror/hub", "https://…@mirror/hub"),
            ("https://user:sec@ret/@mirror", "https://…@mirror"),
        ] {
            let settings = read(&[("HOME", "/h"), ("HF_ENDPOINT", address)]).unwrap();
            assert_eq!(settings.endpoint, address);
            assert_eq!(settings.shown_endpoint(), shown);
        }
        assert_eq!(without_user("user:secret@mirror"), "…@mirror");
    }
}
