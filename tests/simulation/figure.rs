//! The figure: requests lost around the outage of a zone.

use std::path::Path;

use plotters::prelude::*;

use crate::world::OUTAGE;

/// Distinct with all common kinds of colour blindness (Okabe and Ito).
const COLOURS: [RGBColor; 5] = [
    RGBColor(70, 70, 70),
    RGBColor(213, 94, 0),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(0, 114, 178),
];

/// The seconds that are shown.
const FROM: u64 = OUTAGE.0 - 30;
const TO: u64 = OUTAGE.0 + 150;

/// Draws, for each name, what a fleet of `sidecars` loses in a second; there were so many behind the counts.
pub fn draw(lines: &[(&str, u64, &Vec<u32>)], sidecars: u64) {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/plots/zone-outage.svg");
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (1040, 380)).into_drawing_area();
        // Below one in a second there is nothing to be seen on a logarithmic scale.
        let top = lines
            .iter()
            .flat_map(|(_, count, lost)| scaled(lost, *count, sidecars))
            .fold(10.0, |a, (_, b)| b.max(a));
        let mut chart = ChartBuilder::on(&root)
            .margin(8)
            .margin_right(36)
            .x_label_area_size(40)
            .y_label_area_size(70)
            .build_cartesian_2d(-30.0..150.0, (1.0..top * 2.0).log_scale())
            .expect("axes");
        chart
            .configure_mesh()
            .light_line_style(WHITE)
            .x_desc("seconds after a zone with a third of the first priority is gone")
            .y_desc("requests lost in a second")
            .draw()
            .expect("a mesh");
        for ((name, count, lost), colour) in lines.iter().zip(COLOURS) {
            let style = colour.stroke_width(2);
            let series =
                chart.draw_series(LineSeries::new(scaled(lost, *count, sidecars), style)).expect("a line");
            series.label(*name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], style));
        }
        let mut labels = chart.configure_series_labels();
        labels
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .border_style(BLACK.mix(0.2));
        labels.draw().expect("a legend");
        root.present().expect("a figure");
    }
    std::fs::write(&file, svg).expect("docs/plots/zone-outage.svg");
}

/// Lost requests by the second, for the whole fleet, averaged over three seconds.
fn scaled(lost: &[u32], count: u64, sidecars: u64) -> impl Iterator<Item = (f64, f64)> + '_ {
    let factor = sidecars as f64 / count as f64;
    (FROM..TO).map(move |second| {
        let near = &lost[second as usize - 1..=second as usize + 1];
        let mean = near.iter().map(|lost| f64::from(*lost)).sum::<f64>() / 3.0;
        (second as f64 - OUTAGE.0 as f64, (mean * factor).max(1.0))
    })
}
