//! Asks a hub over HTTP: what a repository holds at a revision, what a file is, its bytes. Every
//! answer is untrusted: each has a limit, and each name in it is checked.
//!
//! On `ureq` and not on the crate `hf-hub`, whose 0.5 makes paths of the tags that a server sends,
//! panics on some answers, appends to a partial file whatever a server without ranges sends, checks
//! no digest, has no timeout, and drops the headers that say why and for how long it is refused.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use ureq::http::{Method, Response, StatusCode, header};
use ureq::tls::{RootCerts, TlsConfig, TlsProvider};
use ureq::{Agent, Body, BodyReader, ResponseExt as _};

use super::super::names::{is_blob_name, is_commit, is_plain_path};
use super::redirect;
use super::settings::{HubSettings, HubToken};
use super::{HubError, HubName};

/// Largest list of a repository's files, in bytes: those with a thousand files have half a megabyte.
const MAX_LISTING_BYTES: u64 = 16 << 20;

/// Most redirects from one question to its answer.
const MAX_REDIRECTS: u32 = 8;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection on which nothing arrives for so long is given up; what arrived is kept.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);

/// A hub, asked as one user.
pub(super) struct Client<'a> {
    agent: Agent,
    settings: &'a HubSettings,
    token: Option<&'a HubToken>,
}

/// What a repository holds at a revision.
pub(super) struct Listing {
    /// Its commit, 40 hexadecimal digits.
    pub(super) commit: String,
    /// Paths in the repository, as far as they can be paths here.
    pub(super) files: Vec<String>,
    /// Sizes by path. A mirror may leave them out.
    pub(super) bytes: HashMap<String, u64>,
}

/// What a hub says about a file.
#[derive(Debug)]
pub(super) struct RemoteFile {
    /// Tag of the content: the SHA-256 of a large file, else git's own SHA-1.
    pub(super) tag: String,
    pub(super) bytes: u64,
}

/// Bytes of a file that are on their way.
pub(super) struct Part {
    /// Where in the file they begin: 0 if the server has no ranges.
    pub(super) start: u64,
    pub(super) reader: BodyReader<'static>,
}

/// A repository at a revision.
#[derive(Clone, Copy)]
pub(super) struct At<'a> {
    pub(super) repository: &'a str,
    pub(super) revision: &'a str,
}

impl<'a> Client<'a> {
    pub(super) fn new(settings: &'a HubSettings) -> Result<Self, HubError> {
        let tls = TlsConfig::builder()
            .provider(TlsProvider::Rustls)
            // The system's certificates, as where a company's proxy opens TLS.
            .root_certs(RootCerts::PlatformVerifier)
            .unversioned_rustls_crypto_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .user_agent(concat!("disagg-bench/", env!("CARGO_PKG_VERSION")))
            // Sizes are those of the files, not of what a compressed answer has.
            .accept_encoding("identity")
            // The headers of a refusal say more than its number.
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_per_read(Some(SILENCE_TIMEOUT))
            .build()
            .into();
        let token = settings.token()?;
        Ok(Self {
            agent,
            settings,
            token,
        })
    }

    /// The commit and the files of a repository at a revision.
    pub(super) fn listing(&self, at: At) -> Result<Listing, HubError> {
        #[derive(Deserialize)]
        struct Answer {
            sha: String,
            siblings: Vec<Sibling>,
        }
        #[derive(Deserialize)]
        struct Sibling {
            rfilename: String,
            size: Option<u64>,
        }
        let asked = format!("{}@{}", at.repository, at.revision);
        let url = format!(
            // With their sizes, which one question for each file would tell too.
            "{}/api/models/{}/revision/{}?blobs=true",
            self.settings.endpoint,
            at.repository,
            escaped(at.revision)
        );
        let response = self.get(url, None)?;
        if response.status() != StatusCode::OK {
            return Err(self.refusal(&response, at, None));
        }
        let senseless = |what: String| HubError::Answer {
            asked: asked.clone(),
            what,
        };
        let body = response.into_body().into_with_config();
        let text = body.limit(MAX_LISTING_BYTES).read_to_vec();
        let text = text.map_err(|error| match error {
            ureq::Error::BodyExceedsLimit(_) => {
                senseless(format!("it has more than {MAX_LISTING_BYTES} bytes"))
            }
            other => self.unreachable(&other),
        })?;
        let answer: Answer =
            serde_json::from_slice(&text).map_err(|error| senseless(error.to_string()))?;
        if !is_commit(&answer.sha) {
            return Err(senseless("its commit is no commit".to_owned()));
        }
        if is_commit(at.revision) && answer.sha != at.revision {
            return Err(senseless(format!("it is about commit {}", answer.sha)));
        }
        let mut listing = Listing {
            commit: answer.sha,
            files: Vec::new(),
            bytes: HashMap::new(),
        };
        let files = answer.siblings.into_iter();
        for file in files.filter(|file| is_plain_path(&file.rfilename)) {
            if let Some(bytes) = file.size {
                listing.bytes.insert(file.rfilename.clone(), bytes);
            }
            listing.files.push(file.rfilename);
        }
        Ok(listing)
    }

    /// Tag and size of a file.
    pub(super) fn look(&self, at: At, file: &str) -> Result<RemoteFile, HubError> {
        // A redirect to where large files are kept is not followed: what it says about the file
        // stands beside it, under names of the hub's own.
        let response = self.ask(&Method::HEAD, self.file_url(at, file), None)?;
        if !(response.status().is_success() || response.status().is_redirection()) {
            return Err(self.refusal(&response, at, Some(file)));
        }
        let first = |names: [&str; 2]| names.into_iter().find_map(|name| text(&response, name));
        let senseless = |what: &str| HubError::Answer {
            asked: file.to_owned(),
            what: what.to_owned(),
        };
        let tag = first(["x-linked-etag", "etag"]).ok_or_else(|| senseless("it has no tag"))?;
        let tag = tag.trim_start_matches("W/").trim_matches('"');
        if !is_blob_name(tag) {
            return Err(senseless("its tag is none"));
        }
        let bytes = first(["x-linked-size", "content-length"]).and_then(|size| size.parse().ok());
        Ok(RemoteFile {
            tag: tag.to_owned(),
            bytes: bytes.ok_or_else(|| senseless("it has no size"))?,
        })
    }

    /// The bytes of a file from `start` on, or all where the server has no ranges.
    pub(super) fn read(&self, at: At, file: &str, start: u64) -> Result<Part, HubError> {
        let range = (start > 0).then(|| format!("bytes={start}-"));
        let response = self.get(self.file_url(at, file), range.as_deref())?;
        let start = match response.status() {
            StatusCode::OK => 0,
            StatusCode::PARTIAL_CONTENT => {
                let range = text(&response, header::CONTENT_RANGE.as_str()).unwrap_or_default();
                let begins = range.strip_prefix(&format!("bytes {start}-"));
                begins.map(|_| start).ok_or_else(|| HubError::Answer {
                    asked: file.to_owned(),
                    what: format!("wanted it from byte {start} on, got {range:?}"),
                })?
            }
            _ => return Err(self.refusal(&response, at, Some(file))),
        };
        Ok(Part {
            start,
            reader: response.into_body().into_reader(),
        })
    }

    fn file_url(&self, at: At, file: &str) -> String {
        format!(
            "{}/{}/resolve/{}/{file}",
            self.settings.endpoint,
            at.repository,
            escaped(at.revision)
        )
    }

    /// Asks the hub and follows redirects that stay there. The token goes along, and so goes nowhere
    /// else; the client's own rule for it would take another port of the host for the same.
    fn ask(
        &self,
        method: &Method,
        mut url: String,
        range: Option<&str>,
    ) -> Result<Response<Body>, HubError> {
        let mut hops = 0;
        loop {
            let mut request = match *method {
                Method::HEAD => self.agent.head(&url),
                _ => self.agent.get(&url),
            };
            if let Some(token) = self.token {
                request = request.header(header::AUTHORIZATION, token.bearer());
            }
            if let Some(range) = range {
                request = request.header(header::RANGE, range);
            }
            let request = request
                .config()
                .max_redirects(0)
                .max_redirects_will_error(false);
            let response = self.reached(request.build().call())?;
            let endpoint = &self.settings.endpoint;
            match redirected(&response).filter(|to| redirect::is_at_hub(endpoint, to)) {
                Some(within) if hops < MAX_REDIRECTS => url = within,
                _ => return Ok(response),
            }
            hops += 1;
        }
    }

    /// Asks the hub, and without the token whoever it redirects to.
    fn get(&self, url: String, range: Option<&str>) -> Result<Response<Body>, HubError> {
        let response = self.ask(&Method::GET, url, range)?;
        let Some(elsewhere) = redirected(&response) else {
            return Ok(response);
        };
        let mut request = self.agent.get(elsewhere);
        if let Some(range) = range {
            request = request.header(header::RANGE, range);
        }
        self.reached(request.call())
    }

    fn reached(
        &self,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, HubError> {
        answer.map_err(|error| self.unreachable(&error))
    }

    fn unreachable(&self, error: &ureq::Error) -> HubError {
        HubError::Unreachable {
            endpoint: self.settings.shown_endpoint(),
            detail: (error.to_string())
                .replace(&self.settings.endpoint, &self.settings.shown_endpoint()),
        }
    }

    /// Why there is no answer: what the hub says in a header of its own, else the status.
    fn refusal(&self, response: &Response<Body>, at: At, file: Option<&str>) -> HubError {
        let status = response.status().as_u16();
        let endpoint = self.settings.shown_endpoint();
        let page = format!("{endpoint}/{}", at.repository);
        let has_token = self.token.is_some();
        let asked = file.unwrap_or(at.repository).to_owned();
        let no_revision = || HubError::NoRevision {
            revision: at.revision.to_owned(),
            status,
        };
        let no_file = |file: &str| HubError::NoFile {
            file: file.to_owned(),
            others: ": check its name".to_owned(),
        };
        match (status, text(response, "x-error-code"), file) {
            (_, Some("GatedRepo"), _) => HubError::Gated { page, status },
            (_, Some("RevisionNotFound"), _) => no_revision(),
            (_, Some("EntryNotFound"), Some(file)) | (404, None, Some(file)) => no_file(file),
            (_, Some("RepoNotFound"), _) => HubError::NoRepository { endpoint, status },
            (401 | 403, _, _) => HubError::Denied {
                page,
                status,
                token: match has_token {
                    true => "with the token that it was given",
                    false => "without a token",
                },
            },
            (404, _, _) if at.revision != HubName::DEFAULT_REVISION => no_revision(),
            (404, _, _) => HubError::NoRepository { endpoint, status },
            (429, _, _) => HubError::RateLimited {
                retry_after: text(response, "retry-after")
                    .map(|after| after.escape_debug().to_string()),
                has_token,
            },
            (500.., _, _) => HubError::Server { status, asked },
            _ => HubError::Status { status, asked },
        }
    }
}

/// A revision such as `refs/pr/1` is one component of an address.
fn escaped(revision: &str) -> String {
    revision.replace('/', "%2F")
}

/// Where a redirect leads, as a whole address.
fn redirected(response: &Response<Body>) -> Option<String> {
    let location = text(response, "location").filter(|_| response.status().is_redirection());
    redirect::target(&response.get_uri().to_string(), location?)
}

fn text<'r>(response: &'r Response<Body>, name: &str) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}
