//! The plots of a page, each an SVG element.

use plotters::prelude::*;

use crate::result::{Interval, RunResult, Schedule};

const SIZE: (u32, u32) = (1040, 380);
/// Distinct with all common kinds of colour blindness (Okabe and Ito).
const COLOURS: [(u8, u8, u8); 8] = [
    (0, 114, 178),
    (213, 94, 0),
    (0, 158, 115),
    (204, 121, 167),
    (86, 180, 233),
    (230, 159, 0),
    (70, 70, 70),
    (160, 150, 20),
];

/// The colour of a result.
pub fn colour(nth: usize) -> (u8, u8, u8) {
    COLOURS.get(nth % COLOURS.len()).copied().unwrap_or_default()
}

fn rgb(nth: usize) -> RGBColor {
    let (red, green, blue) = colour(nth);
    RGBColor(red, green, blue)
}

/// Latency over `1 / (1 - quantile)`, so that each nine is as wide as the one before; uncorrected ones are thin.
pub fn percentiles(results: &[RunResult]) -> Result<String, String> {
    let mut lines = Vec::new();
    for (nth, result) in results.iter().enumerate() {
        let latency = &result.latency;
        let points = |curve: &[crate::result::CurvePoint]| -> Vec<(f64, f64)> {
            let inner = curve.iter().filter(|point| point.quantile < 1.0);
            inner.map(|point| (1.0 / (1.0 - point.quantile), (point.us / 1000.0).max(0.001))).collect()
        };
        if result.work.schedule != Schedule::Closed {
            lines.push((
                nth,
                format!("{} (uncorrected)", result.name),
                1,
                points(&latency.uncorrected.curve),
            ));
        }
        lines.push((nth, result.name.clone(), 2, points(&latency.corrected.curve)));
    }
    let all = || lines.iter().flat_map(|(.., points)| points);
    let right = all().map(|(x, _)| *x).fold(10.0, f64::max);
    let low = all().map(|(_, y)| *y).fold(f64::INFINITY, f64::min).min(1.0);
    let high = all().map(|(_, y)| *y).fold(low * 2.0, f64::max);
    let mut svg = String::new();
    let draw = |svg: &mut String| -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .margin_right(36)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d((1.0..right).log_scale(), (low * 0.9..high * 1.1).log_scale())?;
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("percentile")
            .y_desc("latency, ms")
            .x_label_formatter(&|x| percentile(*x))
            .y_label_formatter(&|y| format!("{y}"))
            .draw()?;
        // Who has no curve has no place in the legend.
        for (nth, name, width, points) in lines.iter().filter(|(.., points)| !points.is_empty()) {
            let style = rgb(*nth).stroke_width(*width);
            let series = chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
            series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        legend(&mut chart)?;
        root.present()?;
        Ok(())
    };
    draw(&mut svg).map_err(|error| error.to_string())?;
    Ok(svg)
}

fn percentile(x: f64) -> String {
    let text = format!("{:.6}", 100.0 - 100.0 / x);
    format!("{} %", text.trim_end_matches('0').trim_end_matches('.'))
}

/// A value of every interval.
pub fn over_time(results: &[RunResult], unit: &str, value: fn(&Interval) -> f64) -> Result<String, String> {
    let lines: Vec<Vec<(f64, f64)>> = results
        .iter()
        .map(|result| {
            let middle = |interval: &Interval| interval.start_s + interval.length_s / 2.0;
            // A last piece that is much shorter than the others shows noise.
            let usual = result.series.first().map_or(0.0, |interval| interval.length_s);
            let series = result.series.iter().filter(|interval| interval.length_s > usual / 2.0);
            series.map(|interval| (middle(interval), value(interval))).collect()
        })
        .collect();
    let right = results.iter().map(|result| result.measured_s).fold(0.1, f64::max);
    let high = lines.iter().flatten().map(|(_, y)| *y).fold(1e-6, f64::max);
    let mut svg = String::new();
    let draw = |svg: &mut String| -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .margin_right(36)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(0.0..right, 0.0..high * 1.15)?;
        chart.configure_mesh().light_line_style(WHITE).x_desc("seconds").y_desc(unit).draw()?;
        for (nth, (points, result)) in lines.iter().zip(results).enumerate() {
            let style = rgb(nth).stroke_width(2);
            let series = chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
            series.label(&result.name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        legend(&mut chart)?;
        root.present()?;
        Ok(())
    };
    draw(&mut svg).map_err(|error| error.to_string())?;
    Ok(svg)
}

fn legend<'a, X, Y>(
    chart: &mut ChartContext<'a, SVGBackend<'a>, Cartesian2d<X, Y>>,
) -> Result<(), Box<dyn std::error::Error>>
where
    X: plotters::coord::ranged1d::Ranged<ValueType = f64>,
    Y: plotters::coord::ranged1d::Ranged<ValueType = f64>,
{
    let mut labels = chart.configure_series_labels();
    labels
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.8))
        .border_style(BLACK.mix(0.2));
    labels.draw().map_err(|error| error.to_string())?;
    Ok(())
}
