//! Where a redirect leads, and whether that is still the hub, which alone gets the token.

/// The whole address of a redirect from the address that was asked.
pub(super) fn target(asked: &str, location: &str) -> Option<String> {
    let (scheme, rest) = asked.split_once("://")?;
    let names_a_scheme = |(before, _): (&str, &str)| !before.contains(['/', '?', '#']);
    if location.split_once(':').is_some_and(names_a_scheme) {
        return Some(location.to_owned());
    }
    if location.starts_with("//") {
        return Some(format!("{scheme}:{location}"));
    }
    let (host, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    if location.starts_with('/') {
        return Some(format!("{scheme}://{host}{location}"));
    }
    let path = &path[..path.find('?').unwrap_or(path.len())];
    let folder = path.rsplit_once('/').map_or("", |(folder, _)| folder);
    Some(format!("{scheme}://{host}{folder}/{location}"))
}

/// Whether an address lies below the hub's own.
pub(super) fn is_at_hub(endpoint: &str, address: &str) -> bool {
    (address.strip_prefix(endpoint)).is_some_and(|path| path.starts_with('/') && !climbs(path))
}

/// Whether a server may read this path as one that leads up again.
fn climbs(path: &str) -> bool {
    let plain = path.to_ascii_lowercase().replace("%2e", ".");
    let plain = plain.replace("%2f", "/").replace("%5c", "\\");
    plain
        .split(['/', '\\', '?', '#'])
        .any(|component| component == "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: &str = "https://mirror.example/hub";
    const ASKED: &str = "https://mirror.example/hub/org/name/resolve/main/a.json";

    #[test]
    fn a_redirect_is_read_from_where_it_was_sent() {
        for (location, wanted) in [
            ("https://other.example/a?b:c", "https://other.example/a?b:c"),
            ("//other.example/a", "https://other.example/a"),
            (
                "/hub/org/new?x=http://y",
                "https://mirror.example/hub/org/new?x=http://y",
            ),
            (
                "b.json",
                "https://mirror.example/hub/org/name/resolve/main/b.json",
            ),
        ] {
            assert_eq!(target(ASKED, location).unwrap(), wanted);
        }
        let from_root = target("https://mirror.example", "a").unwrap();
        assert_eq!(from_root, "https://mirror.example/a");
    }

    #[test]
    fn only_what_stays_at_the_hub_gets_the_token() {
        let stays = |location: &str| is_at_hub(ENDPOINT, &target(ASKED, location).unwrap());
        for inside in [
            "/hub/org/new",
            "https://mirror.example/hub/org/new",
            "//mirror.example/hub/org/new",
            "b.json",
        ] {
            assert!(stays(inside), "{inside}");
        }
        for outside in [
            "/org/name",
            "/hubris/org/name",
            "/hub/../org/name",
            "/hub/%2E%2e/org/name",
            "/hub/..%2forg/name",
            "/hub/..\\org\\name",
            "../../../../../org/name",
            "https://mirror.example/hub/../org/name",
            "https://mirror.example/hubris/org/name",
            "https://mirror.example.evil/hub/org/name",
            "https://mirror.example@evil.example/hub/org/name",
            "http://mirror.example/hub/org/name",
            "//evil.example/hub/org/name",
            "https://evil.example/hub",
        ] {
            assert!(!stays(outside), "{outside}");
        }
    }
}
