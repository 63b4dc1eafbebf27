//! What config says of outlier detection, with Envoy's defaults.

use std::time::Duration;

/// Why a host is an outlier (`envoy.data.cluster.v3.OutlierEjectionType`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Consecutive 5xx answers; without the split, failures of our own count as such.
    Consecutive5xx,
    /// Consecutive 502, 503 or 504.
    ConsecutiveGatewayFailure,
    /// Its success rate is far below that of the other hosts.
    SuccessRate,
    /// Consecutive failures to connect, timeouts and resets.
    ConsecutiveLocalOriginFailure,
    /// As `SuccessRate`, of failures of local origin.
    SuccessRateLocalOrigin,
    /// Too many of its answers are failures.
    FailurePercentage,
    /// As `FailurePercentage`, of failures of local origin.
    FailurePercentageLocalOrigin,
    /// It says that it is degraded (`x-envoy-degraded`). Never an ejection.
    Degraded,
}

impl Kind {
    /// The kinds that eject, in the order of their numbers.
    pub const EJECTING: [Kind; 7] = [
        Kind::Consecutive5xx,
        Kind::ConsecutiveGatewayFailure,
        Kind::SuccessRate,
        Kind::ConsecutiveLocalOriginFailure,
        Kind::SuccessRateLocalOrigin,
        Kind::FailurePercentage,
        Kind::FailurePercentageLocalOrigin,
    ];

    /// As the event log writes it.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Consecutive5xx => "CONSECUTIVE_5XX",
            Kind::ConsecutiveGatewayFailure => "CONSECUTIVE_GATEWAY_FAILURE",
            Kind::SuccessRate => "SUCCESS_RATE",
            Kind::ConsecutiveLocalOriginFailure => "CONSECUTIVE_LOCAL_ORIGIN_FAILURE",
            Kind::SuccessRateLocalOrigin => "SUCCESS_RATE_LOCAL_ORIGIN",
            Kind::FailurePercentage => "FAILURE_PERCENTAGE",
            Kind::FailurePercentageLocalOrigin => "FAILURE_PERCENTAGE_LOCAL_ORIGIN",
            Kind::Degraded => "DEGRADED",
        }
    }

    /// The field that says how likely a detection of this kind is acted on.
    pub fn enforcing_field(self) -> &'static str {
        match self {
            Kind::Consecutive5xx => "enforcing_consecutive_5xx",
            Kind::ConsecutiveGatewayFailure => "enforcing_consecutive_gateway_failure",
            Kind::SuccessRate => "enforcing_success_rate",
            Kind::ConsecutiveLocalOriginFailure => "enforcing_consecutive_local_origin_failure",
            Kind::SuccessRateLocalOrigin => "enforcing_local_origin_success_rate",
            Kind::FailurePercentage => "enforcing_failure_percentage",
            Kind::FailurePercentageLocalOrigin => "enforcing_failure_percentage_local_origin",
            Kind::Degraded => "detect_degraded_hosts",
        }
    }
}

/// `envoy.config.cluster.v3.OutlierDetection`.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// Time between sweeps. Default 10 s.
    pub interval: Duration,
    /// A host is out for this long times the number of its ejections. Default 30 s.
    pub base_ejection_time: Duration,
    /// But no longer than this. Default: the larger of 300 s and `base_ejection_time`.
    pub max_ejection_time: Duration,
    /// Up to this much is added, drawn when the host is ejected. Default 0.
    pub max_ejection_time_jitter: Duration,
    /// Percent of the cluster's hosts that may be out. Default 10.
    pub max_ejection_percent: u32,
    /// Where none is out, one may be ejected whatever `max_ejection_percent` says.
    pub always_eject_one_host: bool,
    /// What the host answers and failures to reach it are counted apart.
    pub split: bool,
    /// Consecutive failures that make an outlier; 0 = never. Default 5.
    pub consecutive_5xx: u32,
    /// The same of gateway failures. Default 5.
    pub consecutive_gateway_failure: u32,
    /// The same of failures of local origin; only with `split`. Default 5.
    pub consecutive_local_origin_failure: u32,
    /// Hosts with enough requests that success rates need. Default 5.
    pub success_rate_minimum_hosts: u32,
    /// Requests within an interval that are enough. Default 100.
    pub success_rate_request_volume: u32,
    /// The threshold is the mean less this times the standard deviation. Default 1.9.
    pub success_rate_stdev_factor: f64,
    /// A host with this percentage of failures or more is an outlier. Default 85.
    pub failure_percentage_threshold: u32,
    /// Hosts with enough requests that failure percentages need. Default 5.
    pub failure_percentage_minimum_hosts: u32,
    /// Requests within an interval that are enough. Default 50.
    pub failure_percentage_request_volume: u32,
    /// How likely a detection of each of [`Kind::EJECTING`] is acted on, in percent.
    pub enforcing: [u32; 7],
    /// A successful active health check brings a host back. Default true.
    pub unejected_by_checks: bool,
    /// Hosts whose answers say that they are degraded are treated so.
    pub detect_degraded: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            base_ejection_time: Duration::from_secs(30),
            max_ejection_time: Duration::from_secs(300),
            max_ejection_time_jitter: Duration::ZERO,
            max_ejection_percent: 10,
            always_eject_one_host: false,
            split: false,
            consecutive_5xx: 5,
            consecutive_gateway_failure: 5,
            consecutive_local_origin_failure: 5,
            success_rate_minimum_hosts: 5,
            success_rate_request_volume: 100,
            success_rate_stdev_factor: 1.9,
            failure_percentage_threshold: 85,
            failure_percentage_minimum_hosts: 5,
            failure_percentage_request_volume: 50,
            enforcing: [100, 0, 100, 100, 100, 0, 0],
            unejected_by_checks: true,
            detect_degraded: false,
        }
    }
}

impl Options {
    /// How likely a detection of this kind is acted on, in percent.
    pub fn enforcing(&self, kind: Kind) -> u32 {
        self.enforcing.get(kind as usize).copied().unwrap_or(100)
    }

    /// How many of `hosts` may be out at once.
    pub fn most_ejected(&self, hosts: usize) -> usize {
        let most = hosts.saturating_mul(self.max_ejection_percent.min(100) as usize) / 100;
        most.max(usize::from(self.always_eject_one_host && hosts > 0))
    }

    /// What keeps a cluster of `hosts` from ever ejecting one, in the words of a warning. `None` if nothing does.
    pub fn never_ejects(&self, hosts: usize) -> Option<String> {
        if self.most_ejected(hosts) == 0 && hosts > 0 {
            let percent = self.max_ejection_percent;
            return Some(format!(
                "max_ejection_percent: {percent} % of {hosts} hosts is less than one host, so none is ever ejected; \
                 set always_eject_one_host or a larger percentage"
            ));
        }
        let rate_hosts = self.success_rate_minimum_hosts as usize <= hosts;
        let failure_hosts = self.failure_percentage_minimum_hosts as usize <= hosts;
        let can = |kind: Kind| {
            let detects = match kind {
                Kind::Consecutive5xx => self.consecutive_5xx > 0,
                Kind::ConsecutiveGatewayFailure => self.consecutive_gateway_failure > 0,
                Kind::ConsecutiveLocalOriginFailure => {
                    self.split && self.consecutive_local_origin_failure > 0
                }
                Kind::SuccessRate => rate_hosts,
                Kind::SuccessRateLocalOrigin => self.split && rate_hosts,
                Kind::FailurePercentage => failure_hosts,
                Kind::FailurePercentageLocalOrigin => self.split && failure_hosts,
                Kind::Degraded => false,
            };
            detects && self.enforcing(kind) > 0
        };
        let any = Kind::EJECTING.into_iter().any(can);
        (!any && hosts > 0).then(|| {
            format!("with {hosts} hosts nothing is both detected and enforced, so none is ever ejected")
        })
    }
}
