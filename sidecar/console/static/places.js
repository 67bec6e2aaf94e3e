// Where clusters are on the map, by their names: cities, countries and the regions of clouds. Settings come first.

/** Latitude and longitude, by a word that may stand in a cluster's name; the longest that does counts. */
const known = {
  "eu-central-1": [50.1, 8.7], "eu-central-2": [47.4, 8.5], "eu-west-1": [53.3, -6.3], "eu-west-2": [51.5, -0.1], "eu-west-3": [48.9, 2.4],
  "eu-north-1": [59.3, 18.1], "eu-south-1": [45.5, 9.2], "us-east-1": [38.9, -77.4], "us-east-2": [40, -83], "us-west-1": [37.4, -122],
  "us-west-2": [45.8, -119.7], "ca-central-1": [45.5, -73.6], "sa-east-1": [-23.5, -46.6], "ap-southeast-1": [1.3, 103.8],
  "ap-southeast-2": [-33.9, 151.2], "ap-southeast-3": [-6.2, 106.8], "ap-northeast-1": [35.7, 139.7], "ap-northeast-2": [37.6, 127],
  "ap-northeast-3": [34.7, 135.5], "ap-south-1": [19.1, 72.9], "ap-east-1": [22.3, 114.2], "af-south-1": [-33.9, 18.4], "me-south-1": [26.1, 50.6],
  "me-central-1": [24.5, 54.4], "il-central-1": [32.1, 34.8],
  "europe-west1": [50.4, 3.8], "europe-west2": [51.5, -0.1], "europe-west3": [50.1, 8.7], "europe-west4": [53.4, 6.8], "europe-north1": [60.6, 27.2],
  "us-central1": [41.3, -95.9], "us-east1": [33.2, -80], "us-east4": [39, -77.5], "us-west1": [45.6, -121.2], "us-west2": [34.1, -118.2],
  "asia-east1": [24.1, 120.5], "asia-northeast1": [35.7, 139.7], "asia-south1": [19.1, 72.9], "asia-southeast1": [1.3, 103.8],
  "australia-southeast1": [-33.9, 151.2], "southamerica-east1": [-23.5, -46.6],
  westeurope: [52.4, 4.9], northeurope: [53.3, -6.3], germanywestcentral: [50.1, 8.7], francecentral: [48.9, 2.4], uksouth: [51, -0.8],
  swedencentral: [60.7, 17.1], switzerlandnorth: [47.4, 8.5], eastus: [37.4, -79.8], eastus2: [36.7, -78.4], westus: [37.8, -122.4],
  westus2: [47.2, -119.9], westus3: [33.4, -112], centralus: [41.6, -93.6], southeastasia: [1.3, 103.8], eastasia: [22.3, 114.2],
  japaneast: [35.7, 139.8], koreacentral: [37.6, 127], australiaeast: [-33.9, 151.2], brazilsouth: [-23.5, -46.6], centralindia: [18.6, 73.9],
  "us-west": [37.4, -122], "us-east": [38.9, -77.4], "us-central": [41.3, -95.9], "eu-west": [51.5, 0], "eu-central": [50.1, 8.7], "eu-north": [59.3, 18.1],
  "ap-south": [19.1, 72.9], "ap-southeast": [1.3, 103.8], "ap-northeast": [35.7, 139.7],
  germany: [50.1, 8.7], frankfurt: [50.1, 8.7], berlin: [52.5, 13.4], falkenstein: [50.5, 12.4], nuremberg: [49.5, 11.1], helsinki: [60.2, 24.9],
  finland: [60.2, 24.9], london: [51.5, -0.1], ireland: [53.3, -6.3], dublin: [53.3, -6.3], paris: [48.9, 2.4], france: [48.9, 2.4],
  amsterdam: [52.4, 4.9], netherlands: [52.4, 4.9], milan: [45.5, 9.2], italy: [45.5, 9.2], madrid: [40.4, -3.7], spain: [40.4, -3.7],
  stockholm: [59.3, 18.1], sweden: [59.3, 18.1], zurich: [47.4, 8.5], switzerland: [47.4, 8.5], vienna: [48.2, 16.4], austria: [48.2, 16.4],
  warsaw: [52.2, 21], poland: [52.2, 21], hungary: [47.5, 19], budapest: [47.5, 19], singapore: [1.3, 103.8], tokyo: [35.7, 139.7],
  japan: [35.7, 139.7], osaka: [34.7, 135.5], seoul: [37.6, 127], korea: [37.6, 127], mumbai: [19.1, 72.9], india: [19.1, 72.9],
  bangalore: [13, 77.6], "hong-kong": [22.3, 114.2], hongkong: [22.3, 114.2], sydney: [-33.9, 151.2], australia: [-33.9, 151.2],
  melbourne: [-37.8, 145], jakarta: [-6.2, 106.8], dubai: [25.2, 55.3], "tel-aviv": [32.1, 34.8], johannesburg: [-26.2, 28], "cape-town": [-33.9, 18.4],
  lagos: [6.5, 3.4], nairobi: [-1.3, 36.8], "sao-paulo": [-23.5, -46.6], brazil: [-23.5, -46.6], santiago: [-33.4, -70.7], bogota: [4.7, -74.1],
  mexico: [19.4, -99.1], toronto: [43.7, -79.4], montreal: [45.5, -73.6], canada: [45.5, -73.6], "new-york": [40.7, -74], nyc: [40.7, -74],
  virginia: [38.9, -77.4], ashburn: [39, -77.5], chicago: [41.9, -87.6], dallas: [32.8, -96.8], "san-francisco": [37.8, -122.4], sfo: [37.6, -122.4],
  "los-angeles": [34.1, -118.2], oregon: [45.8, -119.7], hillsboro: [45.5, -123], seattle: [47.6, -122.3], miami: [25.8, -80.2],
};

export function placeOf(cluster, settings) {
  if (settings?.[cluster]) return settings[cluster];
  const name = cluster.toLowerCase();
  const word = Object.keys(known).filter((w) => name.includes(w)).sort((a, b) => b.length - a.length)[0];
  return word ? known[word] : undefined;
}

/** The Equal Earth projection (Šavrič, Patterson and Jenny, 2018) onto the picture of the land, 1000 wide. */
export function project([latitude, longitude]) {
  const [a, b, c, d] = [1.340264, -0.081106, 0.000893, 0.003796];
  const root = Math.sqrt(3) / 2;
  const l = Math.asin(root * Math.sin(latitude * Math.PI / 180));
  const [l2, l6] = [l * l, l ** 6];
  const x = longitude * Math.PI / 180 * Math.cos(l) / (root * (a + 3 * b * l2 + l6 * (7 * c + 9 * d * l2)));
  const y = l * (a + b * l2 + l6 * (c + d * l2));
  return [500 + x * 500 / 2.70663, 243.35 - y * 500 / 2.70663];
}
