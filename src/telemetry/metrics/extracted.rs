//! The names of statistics without their variable parts, which become tags.

use super::Sample;

/// The code or class of responses in a name: the name that Envoy's tag has, and its value.
pub(super) type Code<'a> = Option<(&'static str, &'a str)>;

impl Sample {
    /// The parts of the name that stay, and the response code or class that leaves it, as Envoy's default tag rules
    /// have it.
    pub(super) fn parts(&self) -> ([&str; 3], Code<'_>) {
        let leaf = &*self.leaf;
        if self.scope.0.labelled {
            return (["", leaf, ""], None);
        }
        let family = &*self.scope.0.family;
        match leaf.rsplit_once("_rq_") {
            Some((_, code)) if code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()) => {
                ([family, &leaf[..leaf.len() - code.len() - 1], ""], Some(("envoy.response_code", code)))
            }
            Some((_, class))
                if class.len() == 3 && class.ends_with("xx") && class.as_bytes()[0].is_ascii_digit() =>
            {
                let stem = &leaf[..leaf.len() - class.len()];
                ([family, stem, "xx"], Some(("envoy.response_code_class", &class[..1])))
            }
            _ => ([family, leaf, ""], None),
        }
    }

    /// The name without its variable parts, and those as tags, under Envoy's names for them.
    pub fn extracted(&self) -> (String, Vec<(String, &str)>) {
        let (parts, code) = self.parts();
        let own = self.scope.0.tags.iter().map(|(name, value)| {
            // Prometheus' names of Envoy's tags have a low line where Envoy's own have a dot.
            let name = match name.strip_prefix("envoy_").filter(|_| !self.scope.0.labelled) {
                Some(rest) => format!("envoy.{rest}"),
                None => name.to_string(),
            };
            (name, &**value)
        });
        let code = code.map(|(name, value)| (name.to_owned(), value));
        (parts.concat(), code.into_iter().chain(own).collect())
    }
}
